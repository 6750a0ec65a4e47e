"""Zero-shot evaluation: the suite's own trained models on lm-eval's tasks, from local items."""
