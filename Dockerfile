# Two images of one code: `docker build --target cpu -t darkroom:cpu .` has the demo models and runs anywhere;
# `docker build --target gpu -t darkroom:gpu .` has CUDA and xformers, and gets its weights from a volume.
# Everything is pinned and baked in: a pod installs nothing when it starts.

FROM python:3.11-slim-bookworm AS base
ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PATH=/opt/darkroom/bin:$PATH
# KubeRay's probes run `bash -c "wget ..."`. tini reaps what `docker run` would leave; KubeRay starts `ray start` itself.
RUN apt-get update \
    && apt-get install -y --no-install-recommends bash wget tini procps libgomp1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --create-home darkroom \
    && install -d -o darkroom /cache /models /etc/darkroom
RUN python -m venv /opt/darkroom
WORKDIR /app
COPY pyproject.toml constraints.txt README.md ./

FROM base AS cpu
RUN pip install torch --index-url https://download.pytorch.org/whl/cpu -c constraints.txt
COPY serve_app serve_app
COPY deployments deployments
# Not editable: what is installed is what runs, wherever Ray starts a worker.
RUN pip install . "ray[default,serve]" -c constraints.txt
USER 1000
ENTRYPOINT ["tini", "--"]
CMD ["darkroom", "serve", "--host", "0.0.0.0", "--without-keys"]

# torch's wheels bring the CUDA libraries; the node brings the driver. torch 2.13 fuses loops anew after fusion, which
# makes convolution networks in half precision slower: not here.
FROM base AS gpu
# Triton, which torch.compile writes kernels for, compiles the way into each of them with the host's C compiler.
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
RUN pip install torch -c constraints.txt
COPY serve_app serve_app
COPY deployments deployments
RUN pip install ".[gpu]" "ray[default,serve]" -c constraints.txt
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    CC=gcc \
    TORCHINDUCTOR_CACHE_DIR=/cache/inductor \
    TRITON_CACHE_DIR=/cache/triton \
    TORCHINDUCTOR_LOOP_REINDEXING_AFTER_FUSION=0
USER 1000
ENTRYPOINT ["tini", "--"]
# What it serves, and with whose keys, is for a configuration of yours to say: `serve --config FILE --host 0.0.0.0`.
CMD ["darkroom", "serve", "--help"]
