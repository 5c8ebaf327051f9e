"""What is done to checkpoints so that nothing else can: every fault at every place, and a table of how they ended.

The tools, each usable alone:

- `scenes`: the situations of a store (saving, replacing, recovering, going back ...) and the law afterwards;
- `intercept`: a file system that fails, is cut short or kills at its n-th call;
- `disk`: a file system with a log; `power`: every state that a power cut may leave of it;
- `hostile`: what may be done to the folder of a checkpoint; `bounds`: little memory and time for looking at it;
- `processes`: real runs with workers, and SIGKILL at a chosen instant;
- `tally`: the table.

A new call of `helios_fn.checkpoint.FileSystem` is made to fail by itself; `disk` asks what it promises.
A new effect of a store on its folder is a new row of `scenes.SCENES`, and meets every fault.
"""
