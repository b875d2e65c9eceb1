# Stands in for prom/prometheus where no image can be pulled: Debian's, laid out as that one is.
ARG PYTHON=python:3.11-slim-bookworm
FROM ${PYTHON}
RUN apt-get update \
    && apt-get install --yes --no-install-recommends prometheus \
    && rm -rf /var/lib/apt/lists/* \
    && install --directory --owner nobody --group nogroup /prometheus
USER nobody
ENTRYPOINT ["prometheus"]
CMD ["--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/prometheus"]
