"""Drawing from the command line: the options of sample.py, the images given, several processes, and the files written.

| to add | change |
|---|---|
| an option | its group in `options.py`; `DENOISING` there if `DiffusionModel.denoising` takes it; `job.RECORDED` |
| images or a model that an option names | `job.py`, where `prepare` opens and checks everything before any work |
| a file that is written | `write.py`, and `job.NAMES` |
"""
