"""What a task that makes many songs says of its latest try, and where the songs are stored: in segments."""

from __future__ import annotations

from dataclasses import dataclass

from airflow_provider_whisul.state.batch_song import StoredSong
from airflow_provider_whisul.state.state_store import StateStore, read_versioned, unreadable

#: Songs in one segment.
SEGMENT_SONGS = 20

#: The key of the head.
HEAD_KEY = "whisul_batch"


@dataclass(frozen=True)
class BatchHead:
    """
    The value that says what a try was, and how the other values of its state are to be read.

    :param account: The account that the songs were submitted with.
    :param clear_count: The task's :func:`~airflow_provider_whisul.state.state_store.clear_count` in that try.
    :param delivered: Whether the task had the result that it was asked for.
    :param began_at: When the try began, in Unix seconds.
    :param songs: How many songs the batch has.
    :param generation: As in :class:`~airflow_provider_whisul.state.batch_state.BatchState`.
    :param prompt_pieces: As in :class:`~airflow_provider_whisul.state.batch_state.BatchState`.
    :param dropped: As in :class:`~airflow_provider_whisul.state.batch_state.BatchState`.
    """

    account: str
    clear_count: int
    delivered: bool
    began_at: float
    songs: int
    generation: int
    prompt_pieces: int
    dropped: int

    @classmethod
    def read(cls, store: StateStore) -> BatchHead | None:
        """
        Return the stored head, None if there is none.

        :param store: The store.
        :raises WhisulStateUnreadableError: There is one that this version does not understand.
        """
        match read_versioned(store, HEAD_KEY):
            case None:
                return None
            case {
                "account": str(account),
                "clear_count": int(clear_count),
                "status": "running" | "delivered" as status,
                "began_at": int() | float() as began_at,
                "songs": int(songs),
                "generation": int(generation),
                "prompt_pieces": int(pieces),
                "dropped": int(dropped),
            }:
                delivered = status == "delivered"
                return cls(account, clear_count, delivered, began_at, songs, generation, pieces, dropped)
        raise unreadable(store, HEAD_KEY)

    def stored_songs(self, store: StateStore) -> list[StoredSong]:
        """
        Return the stored songs.

        :param store: The store.
        :raises WhisulStateUnreadableError: One of them is missing, or this version does not understand it.
        """
        found: list[StoredSong] = []
        for first in range(0, self.songs, SEGMENT_SONGS):
            key = segment_key(self.generation, first)
            match read_versioned(store, key):
                case {"songs": list(segment)} if len(segment) == min(SEGMENT_SONGS, self.songs - first):
                    songs = [song for song in map(StoredSong.from_json, segment) if song is not None]
                    if len(songs) == len(segment):
                        found += songs
                        continue
            raise unreadable(store, key)
        return found


def segment_key(generation: int, first: int) -> str:
    """
    Return the key of a segment.

    :param generation: As in :class:`~airflow_provider_whisul.state.batch_state.BatchState`.
    :param first: The index of its first song.
    """
    return f"whisul_batch_{generation}_{first // SEGMENT_SONGS:04d}"
