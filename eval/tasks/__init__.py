"""Evaluation tasks: one declaration a task, one reader a kind of source."""
