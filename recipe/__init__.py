"""What a run asks for, and where it lives. Needs no Ray.

config       the run config: one YAML file         check       is it all there? what `bicot check` says
resources    CPUs and GPUs of each pool            memory      what each pool needs of its GPU
rehearsal    the same run with tiny models         provenance  versions, commit and machine of a run
run_folder   the paths of a run, and its files     errors      what ends a run, as one sentence
compose      recipes on recipes, and overrides     yaml_text   YAML as recipes are written
keys         every key, and the nearest ones       key_docs    docs/config.md and `bicot config`
schema       the JSON schema for editors

`run_folder.write_atomically` and `append_json` are how every file of a run is written that somebody may be reading.
"""
