# Two images: `lab` (the last, what `docker build .` makes) has JupyterLab and the tools that test; `run` only what trains,
# detects and exports. Not built where this was written: no Docker engine was at hand (deploy/README.md).
# docker build -t yolokit .                          docker build --target run -t yolokit-run .
# mkdir -p runs && docker run --rm -it --gpus all --shm-size 8g -p 8888:8888 --user "$(id -u):$(id -g)" \
#   -v "$PWD/runs:/home/yolo/yolokit/runs" -v "$PWD/my-photos:/home/yolo/yolokit/my-photos:ro" yolokit
#   --gpus all     the GPUs (needs the NVIDIA container toolkit; torch's own packages bring CUDA, so no CUDA base image);
#                  leave it out on a machine without one
#   --shm-size     loader workers hand their batches over in shared memory; Docker's 64 MB end in "bus error"
#   --user         you: what is written into runs is yours. Docker makes a missing folder for root: hence mkdir first
# A training run instead of JupyterLab:
# docker run ... yolokit-run yolokit train data=my-photos stage=finetune
FROM python:3.11-slim AS base

# gcc/g++: compile=True (46_compile); libgl1, libglib2.0-0: opencv-python; fonts-nanum: Korean labels
RUN apt-get update && apt-get install -y --no-install-recommends \
        gcc g++ make git libgl1 libglib2.0-0 fonts-nanum && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home yolo
USER yolo
# made here, not by WORKDIR, which would leave it to root; anybody may write (--user)
RUN mkdir -p /home/yolo/yolokit/runs /home/yolo/yolokit/data && chmod -R a+rwX /home/yolo
WORKDIR /home/yolo/yolokit
ENV HOME=/home/yolo

# What the environment depends on comes first, so that an edit of a notebook does not install torch again.
COPY --chown=yolo Makefile pyproject.toml constraints.txt settings.ini README.md LICENSE ./
# the editable install wants the folders of its packages, not what is in them
COPY --chown=yolo yolokit/__init__.py yolokit/__init__.py
RUN mkdir -p nbs && cd yolokit && mkdir core network data cleaning training inference evaluation export compression apps

FROM base AS run
RUN make setup EXTRAS=export,sweep,fast,stores
COPY --chown=yolo . .
ENV PATH=/home/yolo/yolokit/.venv/bin:$PATH
CMD ["yolokit", "--help"]

FROM base AS lab
RUN make setup
COPY --chown=yolo . .
ENV PATH=/home/yolo/yolokit/.venv/bin:$PATH
EXPOSE 8888
CMD ["yolokit", "lab", "--ip=0.0.0.0", "--no-browser"]
