"""A random GGUF of a shape (Q4_0, head Q8_0 or Q4_0) for the peer: python make_gguf.py qwen2.5-0.5b out.gguf [pure]"""
import sys, numpy as np, gguf
from edged.models.pack_shapes import _CONFIGS
c=_CONFIGS[sys.argv[1]]; pure=len(sys.argv)>3
arch={"qwen2":"qwen2","llama":"llama"}[c["model_type"]]
w=gguf.GGUFWriter(sys.argv[2],arch)
W,F,H,KV,V=c["hidden_size"],c["intermediate_size"],c["num_attention_heads"],c["num_key_value_heads"],c["vocab_size"]
D=c.get("head_dim",W//H)
w.add_block_count(c["num_hidden_layers"]);w.add_context_length(c["max_position_embeddings"]);w.add_embedding_length(W);w.add_feed_forward_length(F)
w.add_head_count(H);w.add_head_count_kv(KV);w.add_layer_norm_rms_eps(c["rms_norm_eps"]);w.add_rope_freq_base(c["rope_theta"]);w.add_vocab_size(V)
w.add_tokenizer_model("none")
Q=gguf.GGMLQuantizationType
rng=np.random.default_rng(0)
def mat(name,r,k,t=Q.Q4_0):
    n=r*k//32
    if t==Q.Q4_0: b=np.empty((n,18),np.uint8); b[:,2:]=rng.integers(0,256,(n,16),np.uint8); s=np.full(n,0.35/np.sqrt(k)*.6,np.float16)
    else: b=np.empty((n,34),np.uint8); b[:,2:]=rng.integers(0,256,(n,32),np.uint8); s=np.full(n,0.02/np.sqrt(k),np.float16)
    b[:,:2]=s.view(np.uint8).reshape(n,2)
    w.add_tensor(name,b.reshape(r,-1),raw_dtype=t)
mat("token_embd.weight",V,W,Q.Q4_0 if pure else Q.Q8_0)
w.add_tensor("output_norm.weight",np.ones(W,np.float32))
for i in range(c["num_hidden_layers"]):
    p=f"blk.{i}."
    mat(p+"attn_q.weight",H*D,W);mat(p+"attn_k.weight",KV*D,W);mat(p+"attn_v.weight",KV*D,W);mat(p+"attn_output.weight",W,H*D)
    mat(p+"ffn_gate.weight",F,W);mat(p+"ffn_up.weight",F,W);mat(p+"ffn_down.weight",W,F)
    for n in ("attn_norm","ffn_norm"): w.add_tensor(p+n+".weight",np.ones(W,np.float32))
    if arch=="qwen2":
        for n,s in (("q",H*D),("k",KV*D),("v",KV*D)): w.add_tensor(p+f"attn_{n}.bias",np.zeros(s,np.float32))
w.write_header_to_file();w.write_kv_data_to_file();w.write_tensors_to_file();w.close()
