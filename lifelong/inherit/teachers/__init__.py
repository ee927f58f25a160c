"""One kind of teacher per file; the folder is the registry.

`teachers/cache.py` is the teacher `{cache: ...}`. Its `Plugin` is the section of a recipe, with the key of that name,
and says how the teacher is built, checked and paid for. Recipes are read without torch: a kind imports it inside its
methods.
"""
