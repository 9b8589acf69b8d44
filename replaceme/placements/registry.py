"""The placements by name: a new one is a file beside this and a line here (docs/adding.md).

Where maps at several places change one tensor, they do so in this order.
"""

from replaceme.placements.block import Block
from replaceme.placements.collapse import Collapse
from replaceme.placements.down_proj import DownProj
from replaceme.placements.inputs import Inputs
from replaceme.placements.mlp import Mlp
from replaceme.placements.placement import Placement
from replaceme.placements.upstream import Upstream

PLACES = (
    Mlp(),
    DownProj(),
    Block(),
    Collapse(),
    Upstream(),
)
PLACEMENTS: dict[str, Placement] = {place.name: place for place in PLACES}
# what sums are taken of, some of it no place for a map
REGRESSED: dict[str, Placement] = {**PLACEMENTS, Inputs.name: Inputs()}
