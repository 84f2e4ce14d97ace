"""paired: python bench.py PACKED GGUF [kernels]"""
import sys,time,numpy as np
from pathlib import Path
from statistics import median
from edged.models.packed import open_packed
from edged.engine.backends.native_model import NativeModel, Part
from edged.engine.kernels.library import load_library
import llama_cpp
from llama_cpp import Llama
T=2; N=48
p=open_packed(Path(sys.argv[1]))
m=NativeModel(p,context=2048,blocks=1024,threads=T,kernels=sys.argv[3] if len(sys.argv)>3 else "auto")
L=Llama(sys.argv[2],n_ctx=4096,n_threads=T,n_threads_batch=T,n_batch=512,n_ubatch=512,verbose=False)
V=m.vocabulary; rng=np.random.default_rng(0); ids=rng.integers(0,V,512).tolist()
B=list(range(64))
def ours_decode():
    m.step([Part(ids[:16],0,B)]); t=time.perf_counter()
    for i in range(N): m.step([Part([ids[i]],16+i,B)])
    return N/(time.perf_counter()-t)
def peer_decode():
    L.reset(); L.eval(ids[:16]); t=time.perf_counter()
    for i in range(N): L.eval([ids[i]])
    return N/(time.perf_counter()-t)
def ours_prefill():
    t=time.perf_counter(); m.step([Part(ids,0,B)]); return 512/(time.perf_counter()-t)
def peer_prefill():
    L.reset(); t=time.perf_counter(); L.eval(ids); return 512/(time.perf_counter()-t)
def ours_batch(k):
    def f():
        tabs=[list(range(64+i*8,72+i*8)) for i in range(k)]
        for i in range(k): m.step([Part(ids[:16],0,tabs[i])])
        t=time.perf_counter()
        for j in range(16): m.step([Part([ids[j]],16+j,tabs[i]) for i in range(k)])
        return 16*k/(time.perf_counter()-t)
    return f
ctx=L._ctx.ctx
def peer_batch(k):
    def f():
        b=llama_cpp.llama_batch_init(512,0,1); 
        cp=llama_cpp.llama_init_from_model; 
        def dec(items):
            b.n_tokens=len(items)
            for r,(tok,pos,s) in enumerate(items):
                b.token[r]=tok;b.pos[r]=pos;b.n_seq_id[r]=1;b.seq_id[r][0]=s;b.logits[r]=1
            rc=llama_cpp.llama_decode(C,b); assert rc==0,rc
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(C),True)
        for s in range(k):
            dec([(ids[i],i,s) for i in range(16)])
        t=time.perf_counter()
        for j in range(16): dec([(ids[j],16+j,s) for s in range(k)])
        llama_cpp.llama_get_logits(C)
        r=16*k/(time.perf_counter()-t); llama_cpp.llama_batch_free(b); return r
    return f
cpar=llama_cpp.llama_context_default_params(); cpar.n_ctx=4096; cpar.n_seq_max=16; cpar.n_batch=512; cpar.n_threads=T; cpar.n_threads_batch=T
C=llama_cpp.llama_init_from_model(L._model.model,cpar)
def pair(name,a,b,rounds=7):
    xs,ys,rs=[],[],[]
    a();b()
    for _ in range(rounds):
        time.sleep(.02); x=a(); time.sleep(.02); y=b(); xs.append(x);ys.append(y);rs.append(x/y)
    print(f"{name:12s} ours {median(xs):8.1f}  llama.cpp {median(ys):8.1f}  ratio median {median(rs):.2f} (min {min(rs):.2f} max {max(rs):.2f})",flush=True)
buf=np.ones(50_000_000,np.float64)
bw=load_library().read_bandwidth(buf.ctypes.data,buf.nbytes,T,7)
tok=p.weights_bytes
print("kernels",m.kernels,"bandwidth GB/s %.1f; weights MB %.1f; limit tok/s %.0f"%(bw/1e9,tok/1e6,bw/tok))
pair("decode",ours_decode,peer_decode)
pair("prefill512",ours_prefill,peer_prefill,5)
for k in (4,8,16): pair(f"decode x{k}",ours_batch(k),peer_batch(k),5)
