# The worker in a container, with the extras console and traces: `docker run … ops-worker console` serves the console.
# `make image` fills build/wheels and builds this, from the public base or from a
# local one (BASE: any Debian or Ubuntu with python3 3.11 or newer and its venv module).
#
#   docker run --group-add "$(stat -c %g /var/run/docker.sock)" -v /var/run/docker.sock:/var/run/docker.sock \
#     -e OPS_WORKER_DATABASE_URL=... ops-worker
#
# The worker is an ordinary user in here; --group-add lets it use the engine's socket. Every program that can use that
# socket can do anything on its host: give it to the worker, never to the containers that the worker starts.

ARG BASE=python:3.13-slim

FROM ${BASE} AS build
COPY build/wheels/*.whl requirements/worker.txt requirements/console.txt requirements/traces.txt /wheels/
RUN python3 -m venv /opt/ops-worker \
 && /opt/ops-worker/bin/pip install --no-cache-dir --no-index --find-links /wheels \
    --require-hashes -r /wheels/worker.txt -r /wheels/console.txt -r /wheels/traces.txt
COPY build/wheels/worker /wheels/worker
RUN /opt/ops-worker/bin/pip install --no-cache-dir --no-index --no-deps /wheels/worker/*.whl \
 && /opt/ops-worker/bin/pip freeze --all | sed -n 's/^\(pip\|setuptools\|wheel\)[= ].*/\1/p' \
  | xargs /opt/ops-worker/bin/pip uninstall --yes

FROM ${BASE}
LABEL org.opencontainers.image.title="ops-worker" \
      org.opencontainers.image.description="Runs the work of a PostgreSQL queue in Docker" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN groupadd --gid 10001 ops-worker \
 && useradd --uid 10001 --gid 10001 --home-dir /var/lib/ops-worker --create-home --shell /usr/sbin/nologin \
    ops-worker \
 && install -d -o ops-worker -g ops-worker -m 750 /var/lib/ops-worker/artifacts
COPY --from=build /opt/ops-worker /opt/ops-worker
COPY deploy/healthcheck.py /opt/ops-worker/healthcheck.py
ENV PATH=/opt/ops-worker/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    OPS_WORKER_METRICS_ADDRESS=0.0.0.0:9464
USER ops-worker
WORKDIR /var/lib/ops-worker
VOLUME /var/lib/ops-worker/artifacts
EXPOSE 9464 8090
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "/opt/ops-worker/healthcheck.py"]
ENTRYPOINT ["ops-worker"]
