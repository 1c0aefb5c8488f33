"""The order of samples, alone and under Lightning's resume."""

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import Dataset

from dataloader.data_multi import DataModule
from dataloader.sampler import APART, CropSampler
from utils.errors import UserError


def test_the_order_is_a_function_of_seed_and_epoch():
    def order(seed, epoch):
        sampler = CropSampler(20, 1, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(1, 3) == order(1, 3)
    assert [index for _, index in order(1, 3)] == [
        2,
        4,
        16,
        3,
        14,
        13,
        7,
        10,
        15,
        18,
        8,
        11,
        0,
        1,
        5,
        19,
        6,
        12,
        9,
        17,
    ]  # for ever
    assert {epoch for epoch, _ in order(1, 3)} == {3}
    assert [i for _, i in order(1, 3)] != [i for _, i in order(1, 4)] != [i for _, i in order(2, 4)]


@pytest.mark.parametrize(("length", "world", "batch"), [(20, 2, 3), (11, 3, 1), (12, 2, 2)])
def test_processes_share_full_batches_equally_and_without_overlap(length, world, batch):
    ranks = [CropSampler(length, batch, seed=5, rank=rank, world=world) for rank in range(world)]
    lists = [[index for _, index in sampler] for sampler in ranks]
    expected = length // (world * batch) * batch
    assert [len(x) for x in lists] == [len(sampler) for sampler in ranks] == [expected] * world
    assert len(set().union(*lists)) == expected * world
    alone = [index for _, index in CropSampler(length, batch * world, seed=5)]
    for k in range(0, expected, batch):
        assert {i for x in lists for i in x[k : k + batch]} == set(alone[k * world : (k + batch) * world])


@pytest.mark.parametrize(("groups", "turns", "world", "batch"), [(30, 4, 1, 2), (75, 3, 2, 3), (3, 5, 2, 4)])
def test_neighbours_follow_each_other_some_batches_apart(groups, turns, world, batch):
    ranks = [CropSampler(groups * turns - 1, batch, seed=5, rank=rank, world=world) for rank in range(world)]
    for sampler in ranks:
        sampler.groups = groups
    lists = [[index for _, index in sampler] for sampler in ranks]
    expected = (groups * turns - 1) // (world * batch) * batch
    assert [len(x) for x in lists] == [len(sampler) for sampler in ranks] == [expected] * world
    assert len(set().union(*lists)) == expected * world
    first = [index % groups for index in lists[0]]
    distance = min(APART, groups // (world * batch)) * batch  # of one process
    if distance:
        assert len(set(first[:distance])) == distance and first[distance : 2 * distance] == first[:distance]
    whole = {g for g in range(groups) if [i for x in lists for i in x if i % groups == g].__len__() == turns}
    assert len(whole) >= groups - world * batch - 1


def test_validation_covers_every_file_equally_often_on_every_process():
    lists = [list(CropSampler(5, 2, rank=rank, world=3, shuffle=False)) for rank in range(3)]
    assert lists == [[(0, 0), (0, 3)], [(0, 1), (0, 4)], [(0, 2), (0, 0)]]
    assert [len(CropSampler(5, 2, rank=0, world=3, shuffle=False))] == [2]


def test_skip_is_used_once_and_leaves_the_length():
    sampler = CropSampler(9, 2, seed=0)
    whole = list(sampler)
    sampler.skip = 4
    assert len(sampler) == 8
    assert list(sampler) == whole[4:]
    assert list(sampler) == whole


def test_too_few_samples_say_what_to_do():
    with pytest.raises(UserError, match=r"3 samples .*batch_size=2 on 4 processes\); set crops_per_volume at least 3 times"):
        CropSampler(3, 2, world=4)


class Echo(Dataset):
    """Gives back its key."""

    seed, groups = 7, 4

    def __len__(self):
        return 11

    def __getitem__(self, key):
        return torch.tensor(key)


class Recorder(pl.LightningModule):
    """Notes the samples it is given and saves a checkpoint after one batch."""

    def __init__(self, save_at=None, path=None):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen, self.save_at, self.path = [], save_at, path

    def training_step(self, batch, batch_idx):
        self.seen.append((self.current_epoch, batch.tolist()))
        return self.layer(batch[:1, :1].float()).sum()

    def on_train_batch_end(self, outputs, batch, batch_idx):
        if (self.current_epoch, batch_idx) == self.save_at:
            self.trainer.save_checkpoint(self.path)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


class SaveAtEpochEnd(pl.Callback):
    """Saves when an epoch is over."""

    def __init__(self, epoch, path):
        self.epoch, self.path = epoch, path

    def on_train_epoch_end(self, trainer, module):
        if trainer.current_epoch == self.epoch:
            trainer.save_checkpoint(self.path)


def run(module, workers, checkpoint=None, callbacks=()):
    data = DataModule.__new__(DataModule)
    pl.LightningDataModule.__init__(data)
    data.train_set, data.val_set, data.batch_size, data.workers = Echo(), None, 2, workers
    trainer = pl.Trainer(
        max_epochs=4,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=list(callbacks),
    )
    trainer.fit(module, data, ckpt_path=checkpoint, weights_only=False if checkpoint else None)
    return module.seen


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning", "ignore::UserWarning:pytorch_lightning")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("save_at", [(0, 1), (2, 0), (1, 4), "end of epoch 1"])
def test_a_resumed_run_sees_the_samples_of_an_unbroken_one(save_at, workers, tmp_path):
    path = tmp_path / "a.ckpt"
    if isinstance(save_at, str):
        unbroken = run(Recorder(), workers, callbacks=[SaveAtEpochEnd(1, path)])
        done = 10
    else:
        unbroken = run(Recorder(save_at, path), workers)
        done = save_at[0] * 5 + save_at[1] + 1
    assert len(unbroken) == 20
    assert {(epoch, sample[0]) for epoch, samples in unbroken for sample in samples} == {(e, e) for e in range(4)}
    resumed = run(Recorder(), workers, checkpoint=path)
    assert [samples for _, samples in resumed] == [samples for _, samples in unbroken[done:]]
