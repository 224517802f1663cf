"""Whether this process is one of several of a run, and which: found in the environment, joined, left.

Every process runs the same command; what starts them says who is who. Nothing here knows what a run is.
"""

import contextlib
import dataclasses
import os
import socket
import sys
import threading
from collections.abc import Mapping
from typing import Any

import jax

from research.errors import UserError
from research.parallel import heartbeat
from research.parallel.aborts import before_abort
from research.parallel.relay import Relay
from research.streams import mute, take_from_libraries
from research.watchdog import Watchdog

ADDRESS, COUNT, INDEX = VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
JOIN_SECONDS = 120  # hosts of one job start minutes apart at worst; later than that, one of them never will
# jaxlib's own heartbeat, which ends a process with a trace of its C++: only where ours (heartbeat.py) is itself stuck.
HEARTBEAT_SECONDS = 300
LEAVE_SECONDS = 10
WAIT_SECONDS = 5  # a look for what another says: between two of them signals are seen

_pulse: heartbeat.Pulse | None = None  # of this process, as jax has its state of the cluster


@dataclasses.dataclass(frozen=True)
class Cluster:
  """The processes of a run, as one of them sees them.

  Attributes:
    address: HOST:PORT where process 0 listens.
    count: how many processes there are.
    index: which of them this is.
    device_ids: the host's devices that are this process'; None for all.
  """

  address: str
  count: int
  index: int
  device_ids: tuple[int, ...] | None = None


def find(environment: Mapping[str, str] = os.environ) -> Cluster | None:
  """Who we are by the variables, or by what jax detects (SLURM, MPI, TPU pods, Kubernetes); None where we are alone.

  Raises UserError where the variables contradict themselves, or a cluster is there and does not say who we are.
  """
  if environment.get(COUNT) == "1":  # also the way to run alone on a host of a cluster
    return None
  if not environment.get(COUNT) and not environment.get(INDEX):
    return _detected(environment)
  if missing := [name for name in VARIABLES if not environment.get(name)]:
    given = next(name for name in (COUNT, INDEX) if environment.get(name))
    raise UserError(f"processes: {given} is set and {missing[0]} is not; set all of {', '.join(VARIABLES)}, or none")
  address, count, index = (environment[name] for name in VARIABLES)
  if not all(number.isascii() and number.isdigit() for number in (count, index)) or int(index) >= int(count):
    raise UserError(f"processes: {INDEX}={index} with {COUNT}={count}: processes are numbered from 0, each once")
  host, _, port = address.rpartition(":")
  if not (host and port.isascii() and port.isdigit() and 0 < int(port) < 2**16):
    raise UserError(f"processes: {ADDRESS}={address} is not HOST:PORT, such as 10.0.0.1:8476")
  return Cluster(address, int(count), int(index))


def join(environment: Mapping[str, str] = os.environ) -> None:
  """Joins the other processes, where there are any; before any device is asked for.

  From then on the standard output is process 0's alone, and of Python alone: Gloo tells of every connection there.

  Raises:
    UserError: as `find`, or process 0's port is taken. A process that waits in vain says so and exits with 2 at once:
      jax itself would end it with a trace of its C++.
  """
  cluster = find(environment)
  if cluster is None:
    return
  # jax's preemption service would take SIGTERM for itself, from which `signals.StopRequest` has to hear.
  jax.config.update("jax_enable_preemption_service", False)
  if cluster.index == 0:
    _check_port(cluster.address)
  in_vain = threading.Timer(JOIN_SECONDS, _give_up, [cluster])
  in_vain.daemon = True
  in_vain.start()
  relay = Relay(cluster.address) if cluster.index else None
  try:
    jax.distributed.initialize(
      relay.address if relay else cluster.address,
      cluster.count,
      cluster.index,
      local_device_ids=cluster.device_ids,
      cluster_detection_method="deactivate",
      initialization_timeout=2 * JOIN_SECONDS,
      heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
      shutdown_timeout_seconds=LEAVE_SECONDS,
    )
  except (RuntimeError, ValueError) as error:
    reason = str(error).split("\n")[0]
    raise UserError(f"processes: process {cluster.index} cannot join the others: {reason}") from error
  finally:
    in_vain.cancel()
  if relay:
    relay.hold()
  global _pulse
  lost = relay.lost_seconds if relay else float
  _pulse = heartbeat.Pulse(store(), cluster.index, cluster.count, heartbeat.bounds(environment), lost)
  _pulse.begin()
  before_abort(lambda: failed(RuntimeError("UNAVAILABLE: jaxlib has aborted; its own words stand above")))
  take_from_libraries("stdout") if cluster.index == 0 else mute("stdout")


def joined() -> bool:
  """Whether this is one of several processes."""
  return jax.distributed.is_initialized()


def count() -> int:
  """How many processes there are; unlike jax.process_count() it asks for no device."""
  return _jax().num_processes if joined() else 1


def index() -> int:
  """Which of them this is."""
  return _jax().process_id if joined() else 0


def store() -> Any:
  """The key-value store and the barriers that all processes share (jaxlib's DistributedRuntimeClient)."""
  return _jax().client


def follow(watched: Watchdog | None, stall: float = 0.0) -> None:
  """The others learn from `watched` how far this process is; one that lives and does not come on for `stall` s ends
  the job. None: nothing more is told."""
  if _pulse is not None:
    _pulse.follow(watched, stall)


def failed(error: Exception) -> None:
  """Returns where an error is this process' own, of which the others then learn; it may be told of more than once.

  Where it comes of another process' death, this one ends here, with the line that names it.
  """
  if _pulse is not None:
    _pulse.fail(error)


def get(key: str) -> str:
  """What another process has said or will say under a key of the store.

  It waits as long as all others live, however long they work: for one that does not, heartbeat.py ends this process.
  """
  while True:
    try:
      return store().blocking_key_value_get(key, 1000 * WAIT_SECONDS)
    except jax.errors.JaxRuntimeError as error:
      if "DEADLINE_EXCEEDED" not in str(error):
        raise


def wait_for_all() -> None:
  """Until every process has come here. Where one dies on the way, heartbeat.py ends this process and names it."""
  if joined():
    store().wait_at_barrier("flagship/finished", 1000 * 365 * 86_400)


def leave(code: int) -> int:
  """Lets go of the others, and returns the exit code.

  Where they do not come soon, this process has failed while they wait for it in a collective, or they are dead. Then it
  ends here and now: jax's own shutdown, also at Python's exit, waits for all of them and ends in a trace of its C++.
  The others end with its code too, if it is not 0 and they cannot go on without it.
  """
  if not joined():
    return code
  if _pulse is not None:
    _pulse.leave(code)
  # Without process 0 nothing of these returns: the connection to it is held.
  if heartbeat.within(LEAVE_SECONDS + 1, lambda: store().wait_at_barrier("flagship/leave", 1000 * LEAVE_SECONDS)):
    if _pulse is not None:
      _pulse.close()
    if heartbeat.within(LEAVE_SECONDS + 1, jax.distributed.shutdown):
      return code
  for stream in (sys.stdout, sys.stderr):
    with contextlib.suppress(OSError, ValueError):
      stream.flush()
  os._exit(code)


def _jax() -> Any:
  from jax._src import distributed  # the public door has neither the store nor a count that needs no device

  return distributed.global_state


def _detected(environment: Mapping[str, str]) -> Cluster | None:
  """What jax would find by itself, asked before it is joined: most jobs on a cluster have one process."""
  from jax._src import clusters

  kinds = [kind for kind in clusters.ClusterEnv._cluster_types if not kind.opt_in_only_method]
  if "JOB_COMPLETION_INDEX" not in environment:  # of the pods only an indexed job's are numbered
    kinds.remove(clusters.K8sCluster)
  kind = next((kind for kind in kinds if kind.is_env_present()), None)
  if kind is None:
    return None
  try:
    count = kind.get_process_count()
    if count < 2:
      return None
    port = environment.get("JAX_COORDINATOR_PORT")
    address = environment.get(ADDRESS) or kind.get_coordinator_address(JOIN_SECONDS, port)
    return Cluster(address, count, kind.get_process_id(), _device_ids(kind, count, environment))
  except Exception as error:  # of whatever the cluster's own libraries raise
    reason = str(error).split("\n")[0] or type(error).__name__
    raise UserError(
      f"processes: this is a job of {kind.name}, which does not say who is who ({reason}); set {', '.join(VARIABLES)},"
      f" or {COUNT}=1 to run alone"
    ) from error


def _device_ids(kind: Any, count: int, environment: Mapping[str, str]) -> tuple[int, ...] | None:
  """jax's rule for SLURM and MPI, a device for each process of a host, but for a process that has its host alone."""
  local = kind.get_local_process_id()
  alone = environment.get("SLURM_STEP_NUM_NODES") == str(count) or environment.get("OMPI_COMM_WORLD_LOCAL_SIZE") == "1"
  return None if local is None or alone or environment.get("JAX_LOCAL_DEVICE_IDS") else (local,)


def _check_port(address: str) -> None:
  """Raises UserError where the port is taken: jaxlib crashes on one, or shares it with another run's process 0."""
  port = int(address.rpartition(":")[2])
  dual = socket.has_dualstack_ipv6()
  try:
    socket.create_server(("", port), family=socket.AF_INET6 if dual else socket.AF_INET, dualstack_ipv6=dual).close()
  except OSError as error:
    reason = os.strerror(error.errno) if error.errno else error
    raise UserError(f"processes: process 0 cannot listen at {address}: {reason}; give another port") from error


def _give_up(cluster: Cluster) -> None:
  """Says what is missing, and ends the process."""
  host, _, port = cluster.address.rpartition(":")
  found = f"not all {cluster.count} processes had come to {cluster.address}"
  try:
    if cluster.index:
      socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
  except OSError as error:
    found = f"process 0 was not to be reached at {cluster.address} ({error.strerror or error})"
  print(f"processes: process {cluster.index} waited {JOIN_SECONDS} s, and {found}", file=sys.stderr, flush=True)
  os._exit(2)
