from tests.attacks.test_bodies import *
def test_x(serve):
  for size in (25*1024**2,8*1024**2):
    for server in SERVERS:
        service = serve(server, AUTHORIZATION=KEY)
        def one(n):
            b=b"offline:delay=8 "+b"x"*(size-100)
            t=time.monotonic(); r=post(service,"/ask","text/plain",b,Authorization=KEY); 
            return r[0],round(time.monotonic()-t,1)
        with ThreadPoolExecutor(20) as p, watched(service) as w:
            rs=list(p.map(one,range(20)))
        print(server,size,"20",rs,"longest",round(w.longest,2),w.resident)
for n in list(globals()):
    if n.startswith("test_") and n!="test_x": del globals()[n]
