"""One drafter a file; a recipe's `rollout.drafter` names the file. A drafter guesses the policy's next tokens and the policy
verifies them, so that whatever it guesses, the samples and their log-probs are the policy's."""
