"""python kl_pair.py GGUF PACKED TEXT_FILE [KERNELS …]: mean KL against torch float32 on the first 1,024 tokens, and llama.cpp's"""
import sys,time
GGUF,PACKED,TEXT=sys.argv[1:4]
from pathlib import Path
import numpy as np, torch
from edged.models.packed import open_packed
from edged.engine.backends.native_model import NativeModel, Part
from edged.models.gguf_file import open_gguf
from edged.models.tokenizer_sources import codec_from_gguf
from edged.engine.backends.llama_shape import llama_shape
from edged.engine.backends.torch_gguf import read_network
f=open_gguf(Path(GGUF))
sh=llama_shape(f,2048)
net=read_network(f,sh,2048,torch.float32,"cpu",lambda s:None)
codec=codec_from_gguf(f)
text=Path(TEXT).read_text()
ids=codec.encode(text,False)[:1024]
with torch.no_grad():
    c=net.new_cache(); ref=[]
    for i in range(0,1024,256): ref.append(net.forward(c,torch.tensor(ids[i:i+256]),i,True).float().numpy())
ref=np.concatenate(ref)
def logp(x): x=x-x.max(1,keepdims=True); return x-np.log(np.exp(x).sum(1,keepdims=True))
a=logp(ref.astype(np.float64))
for k in sys.argv[4:] or ["vnni","avx2","portable"]:
    m=NativeModel(open_packed(Path(PACKED)),context=2048,blocks=64,threads=2,kernels=k)
    outs=[m.step([Part(ids[i:i+64],i,list(range(64)),every=True)]) for i in range(0,1024,64)]
    out=np.concatenate(outs); b=logp(out.astype(np.float64))
    print(k,"KL",(np.exp(a)*(a-b)).sum(1).mean(),"top1",(a.argmax(1)==b.argmax(1)).mean(), "ppl", np.exp(-a[np.arange(1023),ids[1:]].mean()), np.exp(-b[np.arange(1023),ids[1:]].mean()), np.abs(out-ref).max())
from llama_cpp import Llama
L=Llama(GGUF,n_ctx=2048,n_threads=2,n_batch=512,logits_all=True,verbose=False)
L.eval(ids)
out=np.array(L.scores[:1024]); b=logp(out.astype(np.float64))
print("llama.cpp","KL",(np.exp(a)*(a-b)).sum(1).mean(),"top1",(a.argmax(1)==b.argmax(1)).mean(), np.exp(-b[np.arange(1023),ids[1:]].mean()), np.abs(out-ref).max())
