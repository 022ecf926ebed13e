# libnbd.py URI REFERENCE structured|simple ro|rw: requests of libnbd, which is told to check nothing itself.
import errno, random, sys
import nbd

uri, reference, replies, mode = sys.argv[1], open(sys.argv[2], "rb").read(), sys.argv[3], sys.argv[4]
structured = replies == "structured"

def connect():
    h = nbd.NBD()
    h.set_strict_mode(0)
    h.set_uri_allow_local_file(True)
    h.set_request_structured_replies(structured)
    h.add_meta_context("base:allocation")
    h.connect_uri(uri)
    return h

def refused(f, *codes):
    try:
        f()
    except nbd.Error as e:
        assert e.errnum in codes, e
    else:
        assert False, "was not refused"
    assert h.pread(512, 0) == reference[:512], "the connection does not go on"

h = connect()
size = h.get_size()
assert size == len(reference)
assert h.get_structured_replies_negotiated() == structured
assert h.can_meta_context("base:allocation") == structured
assert h.is_read_only() == (mode == "ro")

seed = random.randrange(1 << 32)
print("seed", seed)
r = random.Random(seed)
for _ in range(64):
    n = r.randrange(1, 200000)
    off = r.randrange(0, size - n)
    assert h.pread(n, off) == reference[off:off + n], (n, off)
assert h.pread(1, size - 1) == reference[-1:]
assert h.pread(size, 0) == reference
refused(lambda: h.pread(4096, size - 1), errno.EINVAL)
refused(lambda: h.pread(4096, (1 << 63) - 4096), errno.EINVAL)
refused(lambda: h.pread(512, 0, nbd.CMD_FLAG_REQ_ONE), errno.EINVAL)
if structured:
    assert h.pread(300000, 50000, nbd.CMD_FLAG_DF) == reference[50000:350000]

buffers = [(nbd.Buffer(65536), r.randrange(0, size - 65536)) for _ in range(256)]
cookies = [h.aio_pread(b, off) for b, off in buffers]
while h.aio_in_flight():
    h.poll(-1)
for c in cookies:
    h.aio_command_completed(c)
assert all(bytes(b.to_bytearray()) == reference[off:off + 65536] for b, off in buffers)

if structured:
    off = 0
    while off < size:
        extents = []
        h.block_status(size - off, off, lambda c, o, x, e: extents.extend(x))
        for n, flags in zip(extents[::2], extents[1::2]):
            assert n > 0
            assert not flags & 2 or not reference[off:off + n].strip(b"\0"), (off, n)
            off += n
    one = []
    h.block_status(size, 0, lambda c, o, x, e: one.extend(x), nbd.CMD_FLAG_REQ_ONE)
    assert len(one) == 2, one
else:
    refused(lambda: h.block_status(512, 0, lambda *a: 0), errno.EINVAL, errno.ENOTSUP)

if mode == "ro":
    refused(lambda: h.pwrite(b"x" * 512, 0), errno.EPERM)
    refused(lambda: h.zero(512, 0), errno.EPERM)
    refused(lambda: h.trim(512, 0), errno.EPERM)
    h.shutdown()
    sys.exit(0)

h.cache(1 << 20, 0)
refused(lambda: h.pwrite(b"x" * 4096, size - 1), errno.ENOSPC)
refused(lambda: h.zero(4096, size - 1), errno.ENOSPC)
refused(lambda: h.trim(4096, size - 1), errno.EINVAL)
refused(lambda: h.cache(4096, size - 1), errno.EINVAL)
h.pwrite(b"A" * 10000, 12345)
assert h.pread(10002, 12344)[1:-1] == b"A" * 10000
h.pwrite(b"B" * 512, 0, nbd.CMD_FLAG_FUA)
h.zero(65536, 4096, nbd.CMD_FLAG_NO_HOLE)
assert not h.pread(65536, 4096).strip(b"\0")
h.trim(65536, 1 << 20)
h.flush()
a, b = connect(), connect()
assert a.can_multi_conn()
a.pwrite(b"C" * 4096, 8192)
a.flush()
assert b.pread(4096, 8192) == b"C" * 4096
for x in (a, b, h):
    x.shutdown()
