"""Ray nodes on this machine, for `python several_nodes.py CPUS…`: the head's first.

Prints the address, kills all actors at each line of its standard input, and ends with that. A
process of its own: a test that connected to Ray itself could not let go of it.
"""

import sys

import ray
from ray.cluster_utils import Cluster

if __name__ == "__main__":
    head, *others = map(int, sys.argv[1:])
    without = {"include_dashboard": False, "include_log_monitor": False}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": head, **without})
    for cpus in others:
        cluster.add_node(num_cpus=cpus, wait=False)
    cluster.wait_for_nodes()
    print(f"address {cluster.address}", flush=True)
    for _ in sys.stdin:
        ray.init(cluster.address, ignore_reinit_error=True, log_to_driver=False)
        for actor in ray.util.list_named_actors(all_namespaces=True):
            ray.kill(ray.get_actor(actor["name"], actor["namespace"]))
        print("no actors", flush=True)
    ray.shutdown()
    cluster.shutdown()
