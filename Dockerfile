# An image for CUDA: docs/howto/clusters.md says how to use it, by Apptainer, too.
#
# Linted by hadolint, never built: no container engine ran where this was written. Of torch's versions
# the tests have run with 2.11 and 2.13.
#
# torch and CUDA come with the base image, so the version in its tag decides both. The packages that
# setup.py asks for are installed on top; torch stays, because it fits the limit there.
ARG IMAGE=pytorch/pytorch:2.8.0-cuda12.8-cudnn9-devel
FROM ${IMAGE}

SHELL ["/bin/bash", "-o", "pipefail", "-c"]

# g++ compiles ops for CPUs, and Triton its launchers; pdsh and ssh start other nodes from a
# hostfile; RDKit draws with the X libraries.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ libxext6 libxrender1 openssh-client pdsh \
    && rm -rf /var/lib/apt/lists/*

# Editable, so that the commands of the manual, as launch/pretrain.py, are those of this folder.
WORKDIR /opt/msde
COPY . .
RUN pip install --no-cache-dir --editable ".[completion,formats,plot,sklearn,trackers]" \
    # Clusters run images read-only, where Python cannot keep what it compiles at the first start.
    && python -m compileall -q msde launch data_tools ds_configs

CMD ["msde", "--help"]
