# The images of compose.yaml. docs/docker.md tells how to run them.
#   modelplane    control plane, monitor and command line, without TensorFlow
#   serving       that, and TensorFlow Serving's own program, which the monitor starts, drains and stops
#   model-server  that, and modelplane's own model server, for tests and where there is no official image
#   bench         the load generator ghz (https://ghz.sh), which has no image of its own
# One base for all: a virtual environment works only with the Python that it was made with.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm
ARG SERVING_IMAGE=tensorflow/serving:2.19.0
ARG GO_IMAGE=golang:1.24-bookworm
ARG GHZ_VERSION=v0.119.0

FROM ${PYTHON_IMAGE} AS build
WORKDIR /build
RUN python3 -m venv --without-pip /opt/modelplane
# First what comes from outside, by version and hash: a layer that stays while only our own code changes.
COPY modelplane/requirements.txt modelplane/
RUN python3 -m pip --python /opt/modelplane/bin/python install --no-cache-dir --require-hashes -r modelplane/requirements.txt
COPY . .
# The compiler for proto/ is needed here only: pip installs it for the build alone.
RUN python3 -m pip --python /opt/modelplane/bin/python install --no-cache-dir --no-deps .

FROM ${PYTHON_IMAGE} AS modelplane
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin modelplane
COPY --from=build /opt/modelplane /opt/modelplane
COPY --from=build /build/modelplane/healthcheck.sh /usr/local/bin/modelplane-healthcheck
# Nothing is written but in /tmp: the root file system may be read-only.
ENV PATH=/opt/modelplane/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# By number, so that an orchestrator can tell that it is not root.
USER 10001
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD ["modelplane-healthcheck"]
ENTRYPOINT ["modelplane"]

FROM ${SERVING_IMAGE} AS official

FROM modelplane AS serving
COPY --from=official /usr/bin/tensorflow_model_server /usr/bin/
EXPOSE 8500 8501
CMD ["monitor", "--", "tensorflow_model_server", "--port=8500", "--rest_api_port=8501", \
     "--model_config_file=/models/models.config", "--model_config_file_poll_wait_seconds=5"]

FROM build AS build-model-server
RUN python3 -m pip --python /opt/modelplane/bin/python install --no-cache-dir --require-hashes -r model_server/requirements.txt

FROM modelplane AS model-server
COPY --from=build-model-server /opt/modelplane /opt/modelplane
EXPOSE 8500 8501
CMD ["monitor", "--", "modelplane", "model-server", "--port=8500", "--rest_api_port=8501", \
     "--model_config_file=/models/models.config", "--model_config_file_poll_wait_seconds=5"]

FROM ${GO_IMAGE} AS build-ghz
ARG GHZ_VERSION
RUN CGO_ENABLED=0 go install github.com/bojand/ghz/cmd/ghz@${GHZ_VERSION}

FROM modelplane AS bench
COPY --from=build-ghz /go/bin/ghz /usr/local/bin/
HEALTHCHECK NONE
ENTRYPOINT ["ghz"]

# Without a --target: the small one.
FROM modelplane
