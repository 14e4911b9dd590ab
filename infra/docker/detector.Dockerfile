# The detector: the log into findings.
# Build from the repository's root: docker build -f infra/docker/detector.Dockerfile -t tidegate/detector .
# Counterparts: infra/compose/compose.yaml, .dockerignore (which admits the sources alone).
FROM python:3.11.14-slim-bookworm AS build
RUN pip install --no-cache-dir --disable-pip-version-check uv==0.13.9
ENV UV_PROJECT_ENVIRONMENT=/opt/tidegate UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never
WORKDIR /src
COPY pyproject.toml ./
RUN uv sync --no-cache --no-default-groups --no-install-project
COPY README.md LICENSE ./
COPY shared shared
COPY services services
COPY cli cli
RUN uv sync --no-cache --no-default-groups --no-editable

FROM python:3.11.14-slim-bookworm
RUN groupadd --gid 10001 tidegate \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin tidegate \
    && install -d -o tidegate -g tidegate -m 0750 /var/lib/tidegate
COPY --from=build /opt/tidegate /opt/tidegate
ENV PATH=/opt/tidegate/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
WORKDIR /var/lib/tidegate
EXPOSE 8083
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=3s --start-period=30s --retries=6 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8083/healthz', timeout=2)"]
ENTRYPOINT ["tidegate", "detector", "--config", "/etc/tidegate/tidegate.yaml"]
