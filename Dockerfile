# An image of Flagship for one kind of device:
#
#   docker build --build-arg=ACCELERATOR=cuda --tag=flagship:cuda .     # or cpu, which is the default, or tpu
#   docker run --rm --gpus=all --volume="$PWD/runs:/app/runs" flagship:cuda python -m experiments.gan --config=digits
#
# Versions are those of constraints.txt. What runs is not root; its number is 1000, who also owns /app/runs.
ARG BASE=python:3.12.12-slim-bookworm

FROM ${BASE} AS build
ARG ACCELERATOR=cpu
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
RUN python -m venv /venv
ENV PATH=/venv/bin:$PATH
WORKDIR /app
# The libraries first: they are installed anew only when these files change.
COPY pyproject.toml constraints.txt README.md ./
RUN case "$ACCELERATOR" in \
      cpu) extras=text ;; \
      cuda | tpu) extras="text,$ACCELERATOR" ;; \
      *) echo "ACCELERATOR=$ACCELERATOR is none of cpu, cuda, tpu" >&2; exit 2 ;; \
    esac && \
    python -m pip install --no-cache-dir --disable-pip-version-check --constraint constraints.txt ".[$extras]" && \
    python -m pip uninstall --yes flagship
COPY research research
COPY experiments experiments
COPY launch launch
RUN JAX_PLATFORMS=cpu PYTHONPATH=/app python -m research.kernels.native.build

FROM ${BASE}
RUN groupadd --gid 1000 flagship && useradd --uid 1000 --gid 1000 --create-home flagship
COPY --from=build /venv /venv
COPY --from=build /app /app
RUN mkdir /app/runs && chown 1000:1000 /app/runs
ENV PATH=/venv/bin:$PATH PYTHONPATH=/app PYTHONUNBUFFERED=1
WORKDIR /app
USER 1000:1000
CMD ["python", "-m", "experiments.gan", "--config=digits"]
