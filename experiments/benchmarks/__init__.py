"""How fast is it? One file a question, run by `python -m experiments bench NAME`."""
