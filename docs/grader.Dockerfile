# An image that holds the course and nbgrader and nothing else, to grade what students have written.
# docs/teaching.md has the commands. Build it with the repository as its context.
FROM python:3.11-slim
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
ENV HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
COPY pyproject.toml constraints.txt README.md LICENSE /course/
COPY paligemma /course/paligemma
COPY assets /course/assets
RUN cd /course && pip install --no-cache-dir -c constraints.txt -e ".[teach]"
