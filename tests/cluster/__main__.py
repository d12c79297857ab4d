"""`make cluster-test`."""

import sys, time

from tests.cluster.hosts import enter

if __name__ == "__main__":
    enter("tests.cluster")
    from tests.cluster.site import Site, Sweep

    site = Site()
    try:
        began = time.monotonic()
        site.start()
        print("up after", time.monotonic() - began, flush=True)
        calm = Sweep(site, "calm")
        print("submitted", time.monotonic() - began, flush=True)
        controller = calm.control(restart=False)
        print(controller.wait(300))
        print("ran", time.monotonic() - began, flush=True)
        print(calm.report()[:600])
    except BaseException:
        import traceback
        traceback.print_exc()
        for log in sorted(site.folder.glob("*.log")) + sorted(site.folder.glob("homes/*/logs/*")):
            print("==", log); print(log.read_text()[-3000:])
    finally:
        site.close()
