# An image for training and sampling, whose user is not root.
#   docker build -t residual-diffusion .
#   docker run --gpus all --shm-size 8g -v "$PWD/runs:/runs" residual-diffusion train.py --config configs/digits.yaml --run /runs/digits
# /runs has to be writable for the user 1000.
FROM python:3.11-slim

# The C compiler builds the kernels of the CPU and what torch.compile generates.
RUN apt-get update && apt-get install --yes --no-install-recommends gcc g++ libc6-dev && rm -rf /var/lib/apt/lists/*

RUN useradd --uid 1000 --create-home trainer && mkdir /runs && chown trainer /runs
WORKDIR /app
ENV VIRTUAL_ENV=/opt/venv PATH=/opt/venv/bin:$PATH XDG_CACHE_HOME=/home/trainer/.cache PYTHONUNBUFFERED=1
RUN python -m venv /opt/venv

# The dependencies come first: they are installed again only if one of these files changes.
COPY pyproject.toml constraints.txt ./
RUN python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; o = p['optional-dependencies']; print(*p['dependencies'], *o['sample'], *(line for line in o['train'] if not line.startswith('residual')), sep='\n')" > /tmp/requirements.txt \
    && pip install --no-cache-dir -c constraints.txt -r /tmp/requirements.txt

COPY . .
RUN pip install --no-cache-dir --no-deps -e .

USER trainer
ENTRYPOINT ["python"]
CMD ["train.py", "--help"]
