"""Lossless speculative decoding in the transformers stack: drafters guess tokens ahead, the target model reads all of the
guesses in one forward pass, and one verifier keeps of them what it would have said itself.

`tree` is what a drafter hands in, `drafter` what it is, `model` reads trees over a key–value cache, `verify` walks them, and
`decode` is the loop. The drafters themselves are in `rollout.drafters`.
"""
