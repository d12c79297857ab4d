"""Several Ray nodes on this machine, for `python several_nodes.py CPUS…`.

Prints the address and ends with its standard input. A process of its own: a test that connected to
Ray itself could not let go of it.
"""

import sys

from ray.cluster_utils import Cluster

if __name__ == "__main__":
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
    )
    for cpus in sys.argv[1:]:
        cluster.add_node(num_cpus=int(cpus), wait=False)
    cluster.wait_for_nodes()
    print(f"address {cluster.address}", flush=True)
    sys.stdin.read()
    cluster.shutdown()
