"""Simple Storage Service: objects as blob files, everything else in SQLite.

The map: `service` (the front), `call` (one request, XML), `body` (streams to blobs), `checksums`,
`state` (tables), `objects`, `multipart`, `listing`, `buckets` (the calls); what an upload sets off
is in `scar_local.events`.

Keys are data: they never name a file and are never normalised. One version of each object is kept,
ACLs and policies are not enforced, signatures are not verified.
"""
