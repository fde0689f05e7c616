# An image that serves guides with vLLM on GPUs, made from two wheels. In the root of the repository:
#
#   python -m build --wheel && python -m build --wheel --outdir dist integrations/vllm
#   docker build --file deploy/vllm.Dockerfile --tag dual-head-vllm .
#   docker run --rm --gpus all --ipc host --publish 127.0.0.1:8000:8000 --env DUAL_HEAD_API_KEY \
#     --volume "$PWD/out:/guides:ro" --volume "$PWD/models:/models:ro" dual-head-vllm /guides/both --backbone /models/it
#
# Options of vLLM go behind a --. BASE is vLLM's own image of a version that the plugin was tested with.
ARG BASE=vllm/vllm-openai:v0.32.0
FROM ${BASE}

COPY dist/*.whl /tmp/
# Without dependencies: dual-head wants a newer transformers than vLLM, and what runs here does not need it.
RUN python3 -m pip install --no-cache-dir --no-deps /tmp/dual_head-*.whl /tmp/dual_head_vllm-*.whl && rm /tmp/*.whl

RUN useradd --create-home --uid 1000 server
USER server
WORKDIR /home/server
EXPOSE 8000

# Ready when /health says 200, which may take as long as the model takes to load and its graphs to be captured.
HEALTHCHECK --interval=10s --timeout=5s --start-period=1200s \
    CMD ["python3", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["python3", "-m", "dual_head", "serve", "--backend", "vllm", "--host", "0.0.0.0", "--port", "8000"]
