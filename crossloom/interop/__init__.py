"""Checkpoints of other libraries: read as runs, and written from runs.

One module for each foreign family. It declares ``MODEL_TYPES`` (what ``config.json`` calls its
``model_type``), ``read(config, weights, folder)``, which gives a recipe and our weights, and
``write(recipe, weights)``, which gives the content of ``config.json`` and their weights. It may
offer ``files(recipe)``: texts, by file name, that its library wants beside the model. Modules are
found by looking (:func:`crossloom.interop.exchange.families`); nothing lists them.
"""
