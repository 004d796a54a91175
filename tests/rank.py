"""`dualign` as a rank on a CPU that shards under FSDP.

accelerate takes FSDP for accelerators alone: on CPUs it would train copies (DDP) under that name. A
trainer with `accelerator_config: {use_configured_state: true}` keeps the state that is set up here.
"""

import os

from dualign.cli.main import main

if os.environ.get("ACCELERATE_USE_FSDP") == "true":
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    PartialState(cpu=True).distributed_type = DistributedType.MULTI_GPU

if __name__ == "__main__":
    raise SystemExit(main())
