# docker build -t yolokit .
# docker run --rm -it --gpus all --shm-size 8g -p 8888:8888 -v "$PWD/runs:/home/yolo/yolokit/runs" yolokit
#   --gpus all     the GPUs (needs the NVIDIA container toolkit; torch's own packages bring CUDA, so no CUDA base image)
#   --shm-size     loader workers hand their batches over in shared memory; Docker's 64 MB end in "bus error"
# A training run instead of JupyterLab:
# docker run --rm --gpus all --shm-size 8g -v "$PWD/runs:/home/yolo/yolokit/runs" yolokit papermill nbs/train.ipynb -p stage finetune
FROM python:3.11-slim

# gcc/g++: compile=True (45_compile); libgl1, libglib2.0-0: opencv-python; fonts-nanum: Korean labels
RUN apt-get update && apt-get install -y --no-install-recommends \
        gcc g++ make git libgl1 libglib2.0-0 fonts-nanum && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home yolo
USER yolo
# made here, not by WORKDIR, which would leave it to root
RUN mkdir /home/yolo/yolokit
WORKDIR /home/yolo/yolokit

# What the environment depends on comes first, so that an edit of a notebook does not install torch again.
COPY --chown=yolo Makefile pyproject.toml constraints.txt settings.ini README.md LICENSE ./
# the editable install wants the folders of its packages, not what is in them
COPY --chown=yolo yolokit/__init__.py yolokit/__init__.py
RUN mkdir -p nbs && cd yolokit && mkdir core network data cleaning training inference evaluation export compression apps
RUN make setup

COPY --chown=yolo . .
ENV PATH=/home/yolo/yolokit/.venv/bin:$PATH
EXPOSE 8888
CMD ["jupyter", "lab", "--ip=0.0.0.0", "--no-browser", "--ContentsManager.pre_save_hook=nbdev.clean.clean_jupyter", "--LabApp.news_url=None", "nbs"]
