# Treadle on a CPU: docker build -t treadle . && docker run --rm -v "$PWD/runs:/work/runs" treadle train quickstart
# For a GPU, give the build of torch that your driver needs: --build-arg TORCH="torch==2.13.0 --index-url URL".
FROM python:3.11-slim

ARG TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

WORKDIR /treadle
RUN python -m pip install ${TORCH}
COPY pyproject.toml constraints.txt README.md CHANGELOG.md LICENSE ./
COPY src src
RUN python -m pip install -c constraints.txt '.[ray]'

WORKDIR /work
ENTRYPOINT ["treadle"]
CMD ["--help"]
