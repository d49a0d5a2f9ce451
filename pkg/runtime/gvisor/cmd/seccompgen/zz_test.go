package main
import ("testing";"os")
func TestZZ(t *testing.T){
 src,_:=os.ReadFile("../../runscbuild/seccomp.go.overlay")
 p,err:=parse(string(src)); if err!=nil {t.Fatal(err)}
 o,_:=options(); w,err:=compile(o); if err!=nil{t.Fatal(err)}
 blank(w)
 t.Log(len(p.Bytecode32),len(w.Bytecode32),p.VarOffsets,w.VarOffsets)
 n:=0
 for i:=range p.Bytecode32 { if i<len(w.Bytecode32)&&p.Bytecode32[i]!=w.Bytecode32[i]{ t.Logf("%d %x %x",i,p.Bytecode32[i],w.Bytecode32[i]);n++; if n>20{break}}}
}
