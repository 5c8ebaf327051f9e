"""Who resumes exactly? The same job in other training loops, killed and resumed; ``make peers`` runs it.

`job` is what is trained, `leg` the protocol of one process, `adapters` the training loops, `process` starts and
kills, `trials` decides who is killed when, `verdict` compares, `report` tells.
"""
