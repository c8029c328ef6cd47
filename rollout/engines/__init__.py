"""One engine a file; a recipe's `rollout.engine` names the file. All keep the contract of `rlcore.protocols.Engine`."""
