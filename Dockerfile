# Control plane, monitor and command line in one image, without TensorFlow. docs/docker.md tells how to run it.
# One base for both stages: a virtual environment works only with the Python that it was made with.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
WORKDIR /build
RUN python3 -m venv --without-pip /opt/modelplane
COPY . .
# The compiler for proto/ is needed here only: pip installs it for the build alone.
RUN python3 -m pip --python /opt/modelplane/bin/python install --no-cache-dir '.[docker]'

FROM ${PYTHON_IMAGE}
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin modelplane
COPY --from=build /opt/modelplane /opt/modelplane
ENV PATH=/opt/modelplane/bin:$PATH PYTHONUNBUFFERED=1
# By number, so that an orchestrator can tell that it is not root.
USER 10001
ENTRYPOINT ["modelplane"]
