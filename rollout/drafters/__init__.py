"""One drafter a file; a recipe's `rollout.drafter` names the file. A drafter guesses the policy's next tokens and the policy
verifies them, so that whatever it guesses, the samples and their log-probs are the policy's.

There are two kinds, and an engine says which it `verifies`: a `rollout.decoding.drafter.Drafter` hands in trees of tokens, and
the transformers engine reads them; `compressed.Compressed` is how vLLM is to draft by itself. Their keyword arguments are the
options that a recipe gives beside the name; made of these, a drafter holds no model yet and can be sent to other processes.
"""
