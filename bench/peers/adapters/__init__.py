"""One training loop each: ``TITLE``, ``RESUME`` (what its documentation has one do), ``prepare()``, ``train(leg)``.

``prepare`` imports the library and returns what a reader of the results has to know. ``train`` starts the job, or
resumes it if the leg's folder holds a checkpoint, the way the library's documentation (cited) has it.
"""
