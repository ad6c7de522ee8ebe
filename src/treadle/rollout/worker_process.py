"""A worker of lanes as a process, started by `treadle.simulators.launch`."""

from multiprocessing.connection import Connection

from treadle.rollout.board import Board
from treadle.rollout.worker import WorkerPlan, serve


def main(connection: Connection, memory: int) -> None:
    """Serve until told to end, or until the other side is gone."""
    plan: WorkerPlan = connection.recv()
    serve(connection, plan, lambda shape: Board(shape, memory))
