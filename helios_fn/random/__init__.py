"""Keys, and everything random that is made from them.

A key is derived (`fold_in`, `split`) and then used in one of three ways:

- *portable* draws (`uniform`, `normal`, ...): the same everywhere, also compiled and under ``vmap``;
- *native* generators (`generator`, `numpy_generator`): torch's and NumPy's own, at full speed;
- a context for ordinary modules: `scope` keys the global generators that they draw from (any code, at
  full speed, not in compiled regions), `keyed` turns their draws into portable ones.

The same key in two of these ways gives unrelated numbers; a key drawn from twice gives the same ones.

Threads: keys, derivation, draws and the generators returned here are safe to use from several threads
(one generator from one thread at a time). `scope`, `preserved_globals`, `seed_globals` and
`ambient_fingerprint` act on generators that belong to the whole process, and `keyed` looks at its end whether they
were used: enter these from one thread at a time, while no other draws from the globals. Processes share nothing.
"""

from .ambient import ambient_fingerprint as ambient_fingerprint
from .ambient import drawn as drawn
from .ambient import preserved_globals as preserved_globals
from .compiled import Seeded as Seeded
from .context import Draws as Draws
from .context import context as context
from .draws import bernoulli as bernoulli
from .draws import bits as bits
from .draws import normal as normal
from .draws import permutation as permutation
from .draws import randint as randint
from .draws import uniform as uniform
from .generators import generator as generator
from .generators import numpy_generator as numpy_generator
from .keyed import keyed as keyed
from .keys import fold_in as fold_in
from .keys import is_traced as is_traced
from .keys import key as key
from .keys import key_words as key_words
from .keys import split as split
from .samples import sample_generator as sample_generator
from .samples import sample_torch_generator as sample_torch_generator
from .samples import sample_words as sample_words
from .samples import seed_globals as seed_globals
from .scope import numpy as numpy
from .scope import scope as scope
from .within import torch_scope as torch_scope
from .within import within as within
