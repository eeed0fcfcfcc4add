# docker build .                                                              torch as PyPI has it, with CUDA
# docker build --build-arg TORCH_VARIANT=cpu --build-arg TORCH_INDEX_URL=... .    a far smaller image, from an index of
#                                                                             torch's CPU-only wheels
# docs/containers.md has the rest.
ARG PYTHON_IMAGE=python:3.11-slim

FROM ${PYTHON_IMAGE} AS builder
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
# Without pip, which nobody needs at run time.
RUN python -m venv --without-pip /opt/foretell

# Its requirements come below, from wherever the others do.
ARG TORCH_VARIANT=cuda
ARG TORCH_INDEX_URL=""
COPY constraints.txt ./
RUN python -m pip --python /opt/foretell/bin/python install --no-deps --constraint constraints.txt \
    ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} torch \
    # Headers and programs for those who build on it: 190 MB.
    && cd /opt/foretell/lib/python3*/site-packages/torch && rm -r include test \
    && find bin -type f ! -name torch_shm_manager -delete

# Without the code the package is its dependencies alone, so that a change of code leaves this layer as it is.
COPY pyproject.toml README.md LICENSE ./
ARG EXTRAS=""
RUN python -m pip --python /opt/foretell/bin/python install --constraint constraints.txt ".${EXTRAS:+[$EXTRAS]}"
RUN /opt/foretell/bin/python -c "import sys, torch; sys.exit('$TORCH_VARIANT' == 'cpu' and torch.version.cuda and 'this torch brings CUDA: name an index of CPU-only wheels with TORCH_INDEX_URL')"

FROM ${PYTHON_IMAGE}
ARG VERSION="" REVISION=""
LABEL org.opencontainers.image.title="Foretell" \
      org.opencontainers.image.description="Serves time-series forecasts from LSTM and attention models over REST." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    PATH=/opt/foretell/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
# For the container runtime of NVIDIA, where there is one.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /srv/foretell

COPY --from=builder /opt/foretell /opt/foretell
COPY models models
COPY app app
COPY deploy/containers/health.py ./
COPY artifacts artifacts
# Nobody can write them later on.
RUN python -m compileall -q --invalidation-mode unchecked-hash app models

# All of the above is root's: the service can change none of it, and needs nothing but a /tmp to write to
# (docker run --read-only --tmpfs /tmp). By number, since Kubernetes' runAsNonRoot knows no names.
RUN groupadd --system --gid 10001 foretell && useradd --system --uid 10001 --gid 10001 --no-create-home foretell
USER 10001:10001

# The default is this machine only, which in a container is nobody.
ENV FORETELL_HOST=0.0.0.0 FORETELL_PORT=8000
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --start-period=60s --interval=10s --timeout=5s --retries=3 CMD ["python", "-I", "-S", "health.py"]
CMD ["python", "-m", "app"]
