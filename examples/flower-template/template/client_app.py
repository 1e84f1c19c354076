"""The client: three lines make it defended, each marked with an arrow."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from shadow_defense import ShadowSettings
from shadow_defense.federated.flower.shadow_guard_mod import ShadowGuardMod, guarded  # <-
from template.task import Net, load_data
from template.task import train as train_fn

QUICK = ShadowSettings(latent_iterations=100)  # 500 unless told otherwise: this is an example
app = ClientApp(mods=[ShadowGuardMod("~/shadow-generator.safetensors", QUICK, metrics=["train_loss"])])  # <-


@app.train()
def train(msg: Message, context: Context) -> Message:
    model = Net()
    model.load_state_dict(msg.content["arrays"].to_torch_state_dict())
    partition_id, num_partitions = int(context.node_config["partition-id"]), int(context.node_config["num-partitions"])
    trainloader = guarded(load_data(partition_id, num_partitions), model)  # <-
    train_loss = train_fn(model, trainloader, int(context.run_config["local-epochs"]), 0.01)
    metrics = MetricRecord({"train_loss": train_loss, "num-examples": len(trainloader.dataset)})
    return Message(RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}), reply_to=msg)
