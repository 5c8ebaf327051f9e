"""Benchmarks: one file per question. Run one by ``python -m bench.step``, all by ``make bench`` and ``make benchmore``.

They are modules of a package because some are named like modules of the standard library (``random``): by
``python bench/step.py`` those would be found in the place of the real ones.
"""
