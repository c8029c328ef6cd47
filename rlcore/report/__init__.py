"""The page that says how a run went: `write_report` in `page.py`. It only reads what the run left in its folder."""
