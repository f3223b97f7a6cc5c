"""Recipes side by side: the same base model, tasks and tokens, and what each made of them. Imports no JAX.

`plan` says what each run is, `results` reads what the runs left, `screen` and `page` show it, `published` holds what
the makers say of the same components.
"""
