"""LoRA: a PEFT adapter's folder (`peft.py`), merged into its base (`merge.py`) or as a GGUF alone (`adapter.py`)."""
