"""The clocks of a file and of what is made of it; a file of joined recordings has several in turn."""

import bisect
import dataclasses
from typing import NamedTuple

TAIL = 1.0  # seconds: sound may lie this far before the pictures that it belongs to


class Piece(NamedTuple):
    """A stretch of a file whose clock runs on.

    start, end: seconds on the file's clock of its first picture and of the end of its last. offset: seconds to add to
    come to the output's clock. position, tail: bytes of the file at which it begins, and at which its last TAIL begins.
    """

    start: float
    end: float
    offset: float
    position: int = 0
    tail: int = 0


@dataclasses.dataclass(frozen=True)
class Clock:
    """From seconds on a file's clock to seconds on the output's, on which the first frame is shown at 0."""

    pieces: tuple[Piece, ...] = (Piece(0.0, 0.0, 0.0),)

    def shift(self, seconds: float, position: int | None = None) -> float:
        """Seconds on the output's clock.

        position: where in the file the packet of that time lies (`packet.pos`), if it is known: it tells pieces apart
        whose clocks show the same times.
        """
        return seconds + self._piece(seconds, position).offset

    def _piece(self, seconds: float, position: int | None) -> Piece:
        if len(self.pieces) == 1:
            return self.pieces[0]
        if position is None:
            return min(self.pieces, key=lambda piece: max(piece.start - seconds, seconds - piece.end, 0.0))
        index = max(0, bisect.bisect_right(self.pieces, position, key=lambda piece: piece.position) - 1)
        piece = self.pieces[index]
        if index + 1 < len(self.pieces) and position >= piece.tail:
            following = self.pieces[index + 1]
            if abs(seconds - following.start) < abs(seconds - piece.end):
                return following
        return piece
